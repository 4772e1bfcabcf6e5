"use strict";
// Names come from users. Elements get them as textContent; plotly, which knows a little HTML, gets them through plain().

const LONGEST_NAME = 28;

/** Both ends of a long name: long names tend to differ at the end. Controls, which may turn what follows, are blanks. */
function shortened(name, longest = LONGEST_NAME) {
  const letters = Array.from(String(name).replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g, " "));
  if (letters.length <= longest) return letters.join("");
  return letters.slice(0, longest - 10).join("") + "…" + letters.slice(-9).join("");
}

/** A name as plotly shows it letter by letter, in a direction of its own. */
function plain(name, longest) {
  const entities = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };
  return "\u2068" + shortened(name, longest).replace(/[&<>]/g, (letter) => entities[letter]) + "\u2069";
}

/** An element with a class and text. */
function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

/** A name in an element that keeps its direction from its neighbours. */
function name_element(name) {
  return element("bdi", name);
}

function percent(share) {
  return share.toFixed(3);
}

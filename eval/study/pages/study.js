// Keyboard and preloading. Everything works without this file; nothing here decides what is kept.
"use strict";

const form = document.getElementById("answers");
const button = form.querySelector("button");

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const choice = form.querySelector(`input[data-key="${CSS.escape(event.key)}"]`);
  if (choice) {
    choice.checked = true;
    choice.focus();
    event.preventDefault();
  } else if (event.key === "Enter" && !event.target.closest("a, button")) {
    event.preventDefault();
    form.requestSubmit(button);
  } else if (event.key.toLowerCase() === "b") {
    const back = document.getElementById("back");
    if (back) back.click();
  }
});

// A second click while the first is on its way would only be answered with the same page.
form.addEventListener("submit", () => { button.disabled = true; });
// The browser's own "back" brings the page as it was left.
window.addEventListener("pageshow", () => { button.disabled = false; });

// The next pair loads while this one is looked at.
window.addEventListener("load", () => {
  for (const id of form.dataset.ahead.split(" ").filter(Boolean)) new Image().src = `/picture/${id}`;
});

// Find and make elements. Strings are set as text, so they cannot become markup.

export const $ = (id) => document.getElementById(id);

export function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

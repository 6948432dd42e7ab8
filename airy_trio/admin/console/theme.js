// Light, dark or the system's theme, applied before the first paint so that the page does not flash.

(() => {
  const KEY = "airy-trio-theme";
  const CHOICES = ["auto", "light", "dark"];
  let chosen = "auto";

  try {
    const stored = localStorage.getItem(KEY);
    chosen = CHOICES.includes(stored) ? stored : "auto";
  } catch {
    // storage is disabled in this browser; the choice lasts until the page is closed
  }

  const show = () => {
    document.documentElement.dataset.theme = chosen;
    const button = document.getElementById("theme");
    if (button !== null) {
      button.textContent = `Theme: ${chosen}`;
    }
  };

  const next = () => {
    chosen = CHOICES[(CHOICES.indexOf(chosen) + 1) % CHOICES.length];
    try {
      localStorage.setItem(KEY, chosen);
    } catch {
      // as above
    }
    show();
  };

  show();
  document.addEventListener("DOMContentLoaded", () => {
    show();
    document.getElementById("theme").addEventListener("click", next);
  });
})();

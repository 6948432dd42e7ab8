// Light, dark, or as the system has it: read before the page is painted, so that it never flashes in the other one.

(() => {
  const KEY = "airy-trio-theme";
  const CHOICES = ["auto", "light", "dark"];
  let chosen = "auto";

  try {
    const kept = localStorage.getItem(KEY);
    chosen = CHOICES.includes(kept) ? kept : "auto";
  } catch {
    // storage is turned off in this browser: the choice lasts as long as the page
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
      // see above
    }
    show();
  };

  show();
  document.addEventListener("DOMContentLoaded", () => {
    show();
    document.getElementById("theme").addEventListener("click", next);
  });
})();

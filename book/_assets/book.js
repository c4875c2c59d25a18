/* What a style sheet and a template cannot do for keyboards and for screen
   readers. Deferred: the page is parsed when this runs. */
(() => {
  // What scrolls inside itself takes the arrow keys. The theme sees
  // to some of it, once; this follows folds, turns of a phone and MathJax.
  const wide = [
    "pre",
    ".output",
    ".cell_output",
    ".pst-scrollable-table-container",
    'mjx-container[display="true"]',
  ].map((kind) => `.bd-article ${kind}`);
  const watcher = new ResizeObserver((changes) => {
    for (const { target } of changes) {
      const across = target.scrollWidth > target.clientWidth;
      const down = target.scrollHeight > target.clientHeight;
      target.tabIndex = across || down ? 0 : -1;
    }
  });
  const watch = () => {
    document.querySelectorAll(wide).forEach((box) => watcher.observe(box));
  };
  watch();
  addEventListener("load", () => window.MathJax?.startup?.promise.then(watch));

  // The button of the colour mode shows an icon only: say which mode it is.
  const root = document.documentElement;
  const modes = { auto: "as the system", light: "light", dark: "dark" };
  const say = () => {
    document.querySelectorAll(".theme-switch-button").forEach((button) => {
      button.ariaLabel = `Colour mode: ${modes[root.dataset.mode]}`;
    });
  };
  new MutationObserver(say).observe(root, { attributeFilter: ["data-mode"] });
  say();

  // Paper is white, whatever the screen is.
  let theme = root.dataset.theme;
  addEventListener("beforeprint", () => {
    theme = root.dataset.theme;
    root.dataset.theme = "light";
  });
  addEventListener("afterprint", () => {
    root.dataset.theme = theme;
  });

  // The theme takes the focus off the buttons of the drawers when they are
  // pressed; give it back when the drawer shuts.
  for (const side of ["primary", "secondary"]) {
    const drawer = document.getElementById(`pst-${side}-sidebar-modal`);
    drawer?.addEventListener("close", () => {
      document.querySelector(`.${side}-toggle`)?.focus();
    });
  }
})();

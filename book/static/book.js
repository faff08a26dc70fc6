// Small repairs to what other parts of the page leave open.
(() => {
  "use strict";

  // The widget manager asks for equations in the way of MathJax 2; answer it with MathJax 3.
  const answerAsMathJax2 = () => {
    if (!window.MathJax || !MathJax.startup || MathJax.Hub) return;
    MathJax.Hub = {
      Queue: ([, , element]) => MathJax.startup.promise.then(() => MathJax.typesetPromise([element])),
    };
  };

  // Sliders and their pictures come without a name for readers who cannot see them.
  const nameWidgets = () => {
    for (const handle of document.querySelectorAll(".noUi-handle:not([aria-label])")) {
      const label = handle.closest(".widget-inline-hbox")?.querySelector(".widget-label");
      handle.setAttribute("aria-label", label?.textContent.trim() || "Choose a frame");
    }
    for (const picture of document.querySelectorAll("img.widget-image:not([alt])")) {
      picture.alt = picture.title || "The chosen frame; the figure beside the slider shows all frames.";
    }
  };

  document.addEventListener("DOMContentLoaded", () => {
    answerAsMathJax2();
    if (document.querySelector('script[type="application/vnd.jupyter.widget-view+json"]')) {
      new MutationObserver(nameWidgets).observe(document.body, { childList: true, subtree: true });
    }
  });
})();

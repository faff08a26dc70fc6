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

  // A figure whose words would be too small on a phone keeps its size there, and scrolls.
  const keepWords = () => {
    for (const picture of document.querySelectorAll(".bd-article .cell_output img")) {
      const mark = () => {
        picture.classList.toggle("wide-figure", picture.naturalWidth > 640);
        reachWhatScrolls();
      };
      if (picture.complete) mark();
      else picture.addEventListener("load", mark, { once: true });
    }
  };

  // Formulas and figures that are wider than their box scroll, and what scrolls can be reached by keyboard.
  const SCROLLING = ".bd-article :is(div.math, mjx-container[display], .cell_output:has(img.wide-figure))";
  const reachWhatScrolls = () => {
    for (const box of document.querySelectorAll(SCROLLING)) {
      if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  };

  // Beside a link: the definition of a term, or the equation or figure of this page that it leads to.
  const CARDS = ".bd-article a[data-card], .bd-article a.reference[href^='#equation-'], .bd-article a.reference[href^='#fig-']";
  const showCards = () => {
    const card = document.createElement("div");
    Object.assign(card, { id: "hover-card", className: "hover-card tex2jax_process", hidden: true });
    card.setAttribute("role", "tooltip");
    document.body.append(card);
    let timer, link;

    const hide = () => {
      clearTimeout(timer);
      card.hidden = true;
      link?.removeAttribute("aria-describedby");
    };
    const fill = () => {
      if (link.dataset.card) {
        card.textContent = link.dataset.card;
        return window.MathJax?.typesetPromise?.([card]);
      }
      const copy = document.getElementById(decodeURIComponent(link.hash.slice(1)))?.cloneNode(true);
      for (const node of copy ? [copy, ...copy.querySelectorAll("[id]")] : []) node.removeAttribute("id");
      copy?.querySelectorAll(".headerlink").forEach((node) => node.remove());
      card.replaceChildren(...(copy ? [copy] : []));
    };
    const show = async (wanted) => {
      hide();
      link = wanted;
      await fill();
      if (link !== wanted || !card.hasChildNodes()) return;
      card.hidden = false;
      link.setAttribute("aria-describedby", card.id);
      move();
    };
    const move = () => {
      const place = link.getClientRects()[0];
      const below = place.bottom + card.offsetHeight + 8 < innerHeight;
      card.style.left = `${Math.max(8, Math.min(place.left, innerWidth - card.offsetWidth - 8))}px`;
      card.style.top = `${below ? place.bottom + 4 : Math.max(8, place.top - card.offsetHeight - 4)}px`;
    };
    const later = (action, wait) => {
      clearTimeout(timer);
      timer = setTimeout(action, wait);
    };

    for (const found of document.querySelectorAll(CARDS)) {
      found.addEventListener("mouseenter", () => later(() => show(found), 250));
      found.addEventListener("focus", () => show(found));
      found.addEventListener("mouseleave", () => later(hide, 250));
      found.addEventListener("blur", hide);
    }
    card.addEventListener("mouseenter", () => clearTimeout(timer));
    card.addEventListener("mouseleave", () => later(hide, 250));
    document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
    // The browser scrolls to what gets the focus: then the card goes along.
    const scrolled = () => card.hidden || (document.activeElement === link ? move() : hide());
    document.addEventListener("scroll", scrolled, { passive: true });
  };

  // Paper is white: what is printed is the light theme.
  const printLight = () => {
    const root = document.documentElement;
    let theme;
    addEventListener("beforeprint", () => ([theme, root.dataset.theme] = [root.dataset.theme, "light"]));
    addEventListener("afterprint", () => (root.dataset.theme = theme));
  };

  document.addEventListener("DOMContentLoaded", () => {
    printLight();
    answerAsMathJax2();
    showCards();
    keepWords();
    window.MathJax?.startup?.promise?.then(reachWhatScrolls);
    addEventListener("resize", reachWhatScrolls);
    if (document.querySelector('script[type="application/vnd.jupyter.widget-view+json"]')) {
      new MutationObserver(nameWidgets).observe(document.body, { childList: true, subtree: true });
    }
  });
})();

// What the search page shows of each hit: the sentence in which most of the words meet, of the page's own text.
(() => {
  "use strict";
  const LENGTH = 240;
  const NOT_TEXT = ".headerlink, script, style, .toctree-wrapper, div.math, .cell_input, .cell_output, .admonition.dropdown";

  const textOf = (html, anchor) => {
    const found = new DOMParser().parseFromString(html, "text/html");
    const article = found.querySelector(".bd-article");
    if (!article) return "";
    for (const element of article.querySelectorAll(NOT_TEXT)) element.remove();
    const part = anchor ? found.getElementById(anchor.replace("#", "")) : null;
    return (part?.textContent.trim() ? part : article).textContent.replace(/\\[()]/g, "").replace(/\s+/g, " ").trim();
  };

  // Where each word stands in the text, in order.
  const places = (text, words) => {
    const lower = text.toLowerCase();
    const found = [];
    for (const word of words) {
      for (let at = lower.indexOf(word); at >= 0; at = lower.indexOf(word, at + 1)) found.push({ at, word });
    }
    return found.sort((a, b) => a.at - b.at);
  };

  const summary = (html, keywords, anchor) => {
    const text = textOf(html, anchor);
    if (!text) return null;
    const words = [...keywords].map((word) => word.toLowerCase());
    const hits = places(text, words);
    let best = { at: 0, size: 0 };
    hits.forEach(({ at }, first) => {
      const met = new Set();
      for (let k = first; k < hits.length && hits[k].at < at + LENGTH / 2; k += 1) met.add(hits[k].word);
      if (met.size > best.size) best = { at, size: met.size };
    });
    // From the start of the sentence, if that is near, else from the start of a word.
    const near = text.slice(Math.max(0, best.at - LENGTH / 2), best.at);
    const sentence = near.search(/[.?!] (?!.*[.?!] )/);
    const first = best.at - near.length + (sentence >= 0 ? sentence + 2 : best.at > near.length ? near.indexOf(" ") + 1 : 0);
    const last = text.lastIndexOf(" ", first + LENGTH);
    const end = first + LENGTH >= text.length || last <= best.at ? text.length : last;

    const paragraph = document.createElement("p");
    paragraph.classList.add("context");
    let done = first;
    for (const { at, word } of hits.filter(({ at, word }) => at >= first && at + word.length <= end)) {
      if (at < done) continue;
      const strong = document.createElement("strong");
      strong.textContent = text.slice(at, at + word.length);
      paragraph.append(text.slice(done, at), strong);
      done = at + word.length;
    }
    paragraph.append(text.slice(done, end) + (end < text.length ? " …" : ""));
    return paragraph;
  };

  document.addEventListener("DOMContentLoaded", () => {
    if (typeof Search !== "undefined") Search.makeSearchSummary = summary;
  });
})();

// Quizzes: choosing an answer shows what there is to say about it, and announces it to screen readers.
// Without this script, quiz.css shows the feedback beside the chosen answer.
(() => {
  "use strict";

  const verdict = (feedback) =>
    feedback.dataset.correct === "true" ? ["right", "✓ Correct."] : ["wrong", "✗ Not quite."];

  const prepare = (quiz) => {
    const status = document.createElement("div");
    status.className = "quiz-status";
    status.setAttribute("role", "status");
    quiz.append(status);
    quiz.classList.add("quiz-live");

    for (const input of quiz.querySelectorAll("input[type=radio]")) {
      // An answer that is nothing but a formula needs a name that is text.
      const text = input.closest("label").textContent.trim();
      if (/^\\\(.*\\\)$/s.test(text)) input.setAttribute("aria-label", text.slice(2, -2).trim());

      input.addEventListener("change", () => {
        const feedback = quiz.querySelector(`.feedback[data-for="${CSS.escape(input.value)}"]`);
        const [kind, words] = verdict(feedback);
        for (const label of quiz.querySelectorAll("label")) delete label.dataset.verdict;
        input.closest("label").dataset.verdict = kind;
        status.dataset.verdict = kind;
        status.innerHTML = `<strong>${words}</strong> ${feedback.innerHTML}`;
      });
    }
  };

  // The first change of state comes before MathJax, which replaces the source text of formulas.
  const prepareAll = () => document.querySelectorAll(".quiz").forEach(prepare);
  document.addEventListener("readystatechange", prepareAll, { once: true });
})();

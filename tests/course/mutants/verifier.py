"""Of 06, a verifier from intervals to CROWN."""

from __future__ import annotations

from tests.course.mutants import mutant

AFTER = "lower, upper = act(lower), act(upper)  # the ReLU is monotone"
BOX = "lower, upper = lower @ plus.T + upper @ minus.T + b, upper @ plus.T + lower @ minus.T + b"
ALPHA = "alpha = torch.where(unstable, (upper >= -lower).to(lower), on)"
BETA = "beta = torch.where(unstable, upper / (upper - lower).clamp(min=1e-30), on)"
GAMMA = "gamma = torch.where(unstable, -beta * lower, 0.0)"
LOW = "low = backward(layers[:number], hidden, lower, upper, eye)\n"
HIGH = "high = -backward(layers[:number], hidden, lower, upper, -eye)\n"
HIDDEN = "hidden.append(lines(low, high))"
THROUGH = "A = plus * alpha[:, None] + minus * beta[:, None]"
AT_INPUT = "return constant + (plus @ lower[:, :, None] + minus @ upper[:, :, None]).squeeze(2)"
SAID = "return (mine.scatter(1, y[:, None], torch.inf) > 0).all(dim=1)"
IN_VERIFY = '    "Whether each input is verified: (N,) bools."\n'
IN_BALL = "    lower, upper = (x - eps[:, None]).clamp(0, 1), (x + eps[:, None]).clamp(0, 1)\n    K ="
EACH = "[verify(layers, x[i:i + 1], y[i:i + 1], eps[i:i + 1]) for i in range(len(x))]"
NEAR = "(x + eps[:, None] * torch.randn(200, *x.shape).sign()).clamp(0, 1)"
CORNERS = f"(network(layers, {NEAR}).argmax(2) == y).all(0)"
MERGED = "[*layers[:-1], [C @ layers[-1][0], C @ layers[-1][1]]]"
BY_CROWN = "margins = crown(layers, lower, upper, ("
BY_INTERVALS = f"margins = (lambda C: intervals({MERGED}, lower, upper)[-1][0])(("

MUTANTS = {
    "signs of the weights": mutant((BOX, "lower, upper = lower @ W.T + b, upper @ W.T + b"), lost="sound tight larger"),
    "bias lost": mutant((BOX, BOX.replace(" + b", "")), lost="sound tight larger"),
    "no function between": mutant((AFTER, "pass"), lost="sound tight larger"),
    "too wide": mutant((BOX, BOX + "\n        lower, upper = lower - 0.01, upper + 0.01"), lost="tight larger"),
    "always the same line below": mutant((ALPHA, "alpha = on"), lost="area one-row as-crown most deep radii larger"),
    "the line below is the chord's": mutant(
        (ALPHA, "alpha = torch.where(unstable, 1.0, on)"), lost="area one-row as-crown most deep radii larger"
    ),
    "the line above without intercept": mutant(
        (GAMMA, "gamma = 0 * beta"), lost="hold area bound some most deep radii larger"
    ),
    "NaN at a point": mutant(
        (BETA, "beta = upper / (upper - lower)"), lost="hold area stable one-row as-crown some most deep radii larger"
    ),
    "everything is unstable": mutant(
        ("unstable = (lower < 0) & (upper > 0)", "unstable = lower < 9"),
        lost="hold stable bound as-crown some most deep radii larger",
    ),
    "lines the wrong way": mutant(
        (THROUGH, "A = plus * beta[:, None] + minus * alpha[:, None]"),
        lost="bound one-row as-crown most deep radii larger",
    ),
    "the wrong end": mutant(
        (AT_INPUT, AT_INPUT.replace("lower", "l").replace("upper", "lower").replace("l[", "upper[")),
        lost="bound some most deep radii larger",
    ),
    "biases lost": mutant(
        ("constant = constant + A @ b", "constant = constant + 0 * (A @ b)"),
        lost="bound one-row as-crown some most deep radii larger",
    ),
    "hidden layers by intervals": mutant(
        (HIDDEN, "hidden.append(lines(*intervals(layers, lower, upper)[number - 1]))"),
        lost="as-crown most deep radii larger",
    ),
    "one side of the hidden bounds": mutant(
        (HIGH, "high = -low\n"), lost="one-row as-crown some most deep radii larger"
    ),
    "another sample's lines": mutant(
        (HIDDEN, "hidden.append(lines(low[:1].expand_as(low), high[:1].expand_as(low)))"),
        lost="bound one-row as-crown some most deep radii larger",
    ),
    "all verified": mutant((SAID, "return mine[:, 0] == mine[:, 0]"), lost="some most deep radii larger"),
    "all unknown": mutant((SAID, "return mine[:, 0] != mine[:, 0]"), lost="some most deep radii larger"),
    "verified by corners": mutant((SAID, f"return {CORNERS}"), lost="some most deep radii larger"),
    "verified by intervals": mutant((BY_CROWN, BY_INTERVALS), lost="most deep radii larger"),
    "one class alone": mutant((SAID, SAID.replace(".all(dim=1)", ".any(dim=1)")), lost="some most deep radii larger"),
    "half of the ball": mutant(
        (IN_BALL, IN_BALL.replace("eps[:, None]", "eps[:, None] / 2")), lost="some most deep radii larger"
    ),
    "no box": mutant((IN_BALL, IN_BALL.replace(".clamp(0, 1)", "")), lost="most deep radii larger"),
    "numbers typed in": mutant(("times_larger = float(", "times_larger = 2.0 + 0 * float("), lost="larger"),
}

HONEST = {
    "center and radius": mutant(
        (
            BOX,
            "c, r = (lower + upper) @ W.T / 2 + b, (upper - lower) @ W.abs().T / 2\n"
            "        lower, upper = c - r, c + r",
        )
    ),
    "cut with intervals": mutant(
        (
            HIDDEN,
            "by = intervals(layers, lower, upper)[number - 1]\n"
            "        hidden.append(lines(low.maximum(by[0]), high.minimum(by[1])))",
        ),
    ),
    "input by input": mutant((IN_VERIFY, IN_VERIFY + f"    if len(x) > 1:\n        return torch.cat({EACH})\n")),
    "an attack first": mutant((SAID, f"right = {CORNERS}\n    " + SAID.replace("return ", "return right & "))),
    "the left side where both have the same area": mutant((ALPHA, ALPHA.replace(">=", ">"))),
}

ALWAYS = "hidden layers by intervals", "one class alone"
REPLAYED = "hold area stable bound as-crown most deep radii larger"

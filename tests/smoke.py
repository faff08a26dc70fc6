"""What a user does first, by the library that is installed: load a model, attack it. `make smoke` runs this with -I."""

import sys

import robustlab
from robustlab import data, zoo
from robustlab.attacks import pgd

mnist = data.load("mnist5k").subset(n_test=100)
model = zoo.load("mnist_cnn")
accuracy = (model(mnist.x_test).argmax(1) == mnist.y_test).float().mean().item()
result = pgd(model, mnist.x_test, mnist.y_test, eps=0.2, steps=10)
fooled, largest = result.success.float().mean().item(), result.distances["linf"].max().item()

print(f"robustlab {robustlab.__version__} from {robustlab.__file__}: accuracy {accuracy:.0%}, fooled {fooled:.0%}")
if not (robustlab.__file__.startswith(sys.prefix) and accuracy > 0.9 and fooled > 0.5 and largest <= 0.2 + 1e-6):
    sys.exit("This is not what an installed robustlab does.")

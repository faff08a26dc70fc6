from robustlab.evaluation.robust_accuracy import RobustAccuracy as RobustAccuracy
from robustlab.evaluation.robust_accuracy import evaluate as evaluate

"""What a sequence of steps spends: events, epsilon, and the noise that fits a budget.

One private step is one Gaussian mechanism on a Poisson sample, under add-or-remove-one-record
neighbours. So T steps are `SelfComposedDpEvent(PoissonSampledDpEvent(q, GaussianDpEvent(sigma)),
T)`, whatever the error feedback does with the releases. A warm start is one Gaussian mechanism on
all records, composed with the steps. dp_accounting does all the numerics. No TensorFlow.
"""

from tf_efsgd.privacy.accounting.calibration import (
    SMALLEST_NOISE,
    calibrate_noise_multiplier,
    calibrate_unsampled_noise_multiplier,
)
from tf_efsgd.privacy.accounting.epsilon import (
    Epsilon,
    EpsilonMeter,
    compute_epsilon,
    compute_spent,
    rdp_epsilon,
    rdp_epsilon_of,
)
from tf_efsgd.privacy.accounting.events import (
    SAMPLING_GRAIN,
    event_from_dict,
    event_to_dict,
    hidden_sensitivity,
    person_sampling_probability,
    sampling_probability,
    sampling_threshold,
    step_event,
)
from tf_efsgd.privacy.accounting.gaussian import gaussian_epsilon, gaussian_mu, split_release
from tf_efsgd.privacy.accounting.renyi_filter import RenyiFilter

__all__ = [
    'SAMPLING_GRAIN',
    'SMALLEST_NOISE',
    'Epsilon',
    'EpsilonMeter',
    'RenyiFilter',
    'calibrate_noise_multiplier',
    'calibrate_unsampled_noise_multiplier',
    'compute_epsilon',
    'compute_spent',
    'event_from_dict',
    'event_to_dict',
    'gaussian_epsilon',
    'gaussian_mu',
    'hidden_sensitivity',
    'person_sampling_probability',
    'rdp_epsilon',
    'rdp_epsilon_of',
    'sampling_probability',
    'sampling_threshold',
    'split_release',
    'step_event',
]

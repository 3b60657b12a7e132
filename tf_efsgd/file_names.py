"""Names of files and folders that several parts of the program write, read or check."""

# In a run folder.
LEDGER, FLAGFILE = 'ledger.jsonl', 'config.flags'
CHECKPOINTS, SAMPLES, LOGS = 'checkpoints', 'samples', 'logs'
REPORT = 'report.html'
# What is NOT covered by the privacy guarantee, and in it the evaluation.
NONPRIVATE, METRICS = 'nonprivate', 'metrics.json'
# The exports, and in each of them the folder that TF Serving leaves alone.
EXPORT, EXTRA = 'export', 'assets.extra'

# In EXTRA, and in a synthetic data set.
STATEMENT, CHECKSUMS = 'privacy_statement.json', 'SHA256SUMS'

# In a synthetic data set.
LABELS, GENERATION = 'labels.csv', 'generation.json'
README, CROISSANT = 'README.md', 'croissant.json'
PAGE = 'PRIVACY.html'

# Beside what is not private, a run or images; it says so.
NOT_PRIVATE = 'NOT_PRIVATE.txt'

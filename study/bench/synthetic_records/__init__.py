"""Records like those that training leaves, simulated from a known truth: as files on disk, or directly in memory.

Written to disk, a trial takes about 5 ms. In memory, a study of 64 trials takes about 10 ms, so that `bench verdicts`
can answer the questions for hundreds of studies. Nothing here needs torch.
"""

from study.bench.synthetic_records.files import write_study, write_trial
from study.bench.synthetic_records.memory import SyntheticStudy
from study.bench.synthetic_records.truth import Truth

__all__ = ["SyntheticStudy", "Truth", "write_study", "write_trial"]

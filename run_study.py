"""Trains a study and writes its report: `python run_study.py --study depth_vs_batch`. See `--help`."""

from study.__main__ import start

if __name__ == "__main__":
    start()

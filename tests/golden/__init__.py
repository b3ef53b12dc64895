"""Run folders and outputs of earlier versions, which every later version continues and finishes alike.

Each folder here is one job as a run left it: `start/` is the folder that the user worked in, `golden.json` says how
the job goes on, `expected/` holds the output that it is finished with (`start/` does, where it was finished already).
`make.py` made them; `test_golden.py` continues copies of them.
"""

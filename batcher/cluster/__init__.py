"""More machines than one: the same run on Ray, one limit for all workers."""

"""The networks D2LS is compared with, under the same data, trainer and scores: one file each."""

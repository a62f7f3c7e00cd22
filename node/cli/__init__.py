"""The command line: what people and scripts see. Text for either lives here and nowhere else."""

"""Benchmarks: `python -m swarmnode.node.bench NAME`, each printing one JSON object with ratios from one run."""

"""Is it right? The kernels against float64 on this machine, and the contract laws of a mixer."""

"""`lmtrain sweep`: the same recipe with different settings, each as a run of its own."""

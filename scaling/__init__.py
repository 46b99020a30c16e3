"""How many models are trained and what is learnt from them: plan, launch, fit, verify, report."""

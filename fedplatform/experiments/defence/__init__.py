"""The defence of a run: trained, loaded, attacked, certified, shown."""

"""The contract between data and models (spec) and everything that fulfils it; batches of it on a device."""

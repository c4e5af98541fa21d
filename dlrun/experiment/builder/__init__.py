"""From settings to objects: data, model, optimizer, initial weights."""

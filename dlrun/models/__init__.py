"""Plain nn.Modules: a DataSpec in, outputs out."""

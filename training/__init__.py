"""How a model is made: data, the training loop, metrics, export, the parity gate, the release."""

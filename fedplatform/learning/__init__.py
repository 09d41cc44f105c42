"""What a network learns in a hospital: models, local training, parameters, metrics."""

"""What is measured of a network: Fourier features, spectra, order parameters, kernels, attacks."""

"""Which version scores a product's images and at which threshold; detectors in memory."""

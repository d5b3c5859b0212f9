"""The demonstration: everything catwise does, on scenes of handwritten digits."""

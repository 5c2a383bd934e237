"""The cloud side: trains, compresses, delivers, measures and decides."""

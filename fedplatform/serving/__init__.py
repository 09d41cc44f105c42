"""A finished defence in daily use: what comes in, who may ask, what is answered and what is written down."""

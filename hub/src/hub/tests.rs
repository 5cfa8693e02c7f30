//! A whole hub, spoken to over real QUIC on loopback.

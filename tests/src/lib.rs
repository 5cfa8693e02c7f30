//! Tests above all packages: the house rules, and the loop with real processes. The library is empty.

//! Miners that cheat on purpose, so that tests can watch them being caught. Only with feature `adversary`.

//! Runners of sandbox providers against servers that speak their protocols: one module a provider.

mod e2b_judges;

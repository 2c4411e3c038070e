"""The four cases: policies, cuts and builders."""

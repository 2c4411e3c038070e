"""The four cases: their policies, where to cut, and the builders."""

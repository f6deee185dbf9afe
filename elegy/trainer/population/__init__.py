"""Many runs in one compiled step."""

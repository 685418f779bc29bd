"""What is kept: artifacts under keys of what made them, in a folder or in S3."""

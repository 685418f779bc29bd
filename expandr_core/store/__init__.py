"""What is kept: artifacts in a folder or in S3, each under a key derived from how it is made."""

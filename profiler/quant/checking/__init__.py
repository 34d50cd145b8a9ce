"""What a model is made of as it runs: facts of its op calls, the tables made from them, and check_qat_model."""

"""Pure tensor functions: masked statistics, logprobs, KL estimates, advantages, losses. They need torch alone."""

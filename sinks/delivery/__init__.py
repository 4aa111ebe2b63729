"""Between a caller and a target: buffers, queues, threads and retries."""

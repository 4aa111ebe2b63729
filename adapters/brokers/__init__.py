"""Events to and from brokers: Redis, RabbitMQ, Kafka."""

"""Apache Kafka as the event log; the only importer of kafka-python."""

"""How a stage runs: in this process or a child, shard by shard, on which device."""

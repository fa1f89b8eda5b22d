"""What a Dynamo graph says of itself. Knows no pass, no config, no device property, no engine and no call."""

"""Graph passes: values in, values out. They know no config, no device property, no clock, no engine and no call."""
